"""The page: what was run read from manifests, claims judged, charts, image grid, HTML."""
