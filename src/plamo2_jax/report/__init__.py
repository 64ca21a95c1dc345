"""Write one HTML page about a run folder, and describe folders of models and shards."""
