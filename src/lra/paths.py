"""Where the repository and its configurations are."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONF_DIR = REPOSITORY / "conf"
