"""What a data set holds: samples, statistics, descriptions."""
