"""Below everything: mesh, compiled programs, backends, random streams, files."""
