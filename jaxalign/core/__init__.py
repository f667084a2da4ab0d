"""What crosses folders: batches, statistics, losses, objectives, the mesh."""
