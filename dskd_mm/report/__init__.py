"""A page about runs: what came of them, and whether what they logged is healthy."""

from dskd_mm.report.log_keys import LOG_KEYS, LogKey, find_log_key, log_table
from dskd_mm.report.page import build_report
from dskd_mm.report.runs import RunLog, read_runs, read_scalars
