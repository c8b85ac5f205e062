"""What a chapter looks at once a model is trained: features, maps, rankings, neighbours, damage."""
