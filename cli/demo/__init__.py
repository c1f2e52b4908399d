"""`dezky demo`: a tour of four acts, each told while it happens and checked where it happened."""
