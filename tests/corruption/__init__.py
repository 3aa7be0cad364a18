"""What a flipped bit on the disk may do: nothing that a reader takes for good."""
