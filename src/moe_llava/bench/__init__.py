"""One harness for speed and memory: ours, the peers and the floor, interleaved in one process."""
