"""hyprax and its peers on the same arrays, in turns: python -m benchmarks.harness --help"""
