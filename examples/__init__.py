"""What a user of dskd_mm writes: data sets, configs and scripts of their own. No part of the package."""
