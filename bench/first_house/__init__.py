"""Does this tree make what the first house made? `python -m bench.first_house` says, stage by stage."""
