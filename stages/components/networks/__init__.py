"""Files of weights, and parts that several networks share."""
