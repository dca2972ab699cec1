"""What a processor computes better by hand: decoder layers and attention."""
