"""What training takes: discriminators, losses and the loop. No data code: batches come from the caller."""
