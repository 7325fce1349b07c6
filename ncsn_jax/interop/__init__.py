"""Reading what the official PyTorch code wrote, without PyTorch."""
