"""Pictures of what happens to features, and of what models predict. They need matplotlib."""

from dskd_mm.visualization.journey import FeatureJourney, follow_feature
from dskd_mm.visualization.maps import plot_maps
from dskd_mm.visualization.opinions import plot_opinions
from dskd_mm.visualization.plane import plot_plane
from dskd_mm.visualization.predictions import draw_prediction, grid
