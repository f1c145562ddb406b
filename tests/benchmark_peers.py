"""Methods for the tests of the harness, run in its workers: right, hasty and wrong, tuned, and broken in two ways."""

import os
import time


def right(data, seconds=0.002):
    def run():
        time.sleep(seconds)
        return {"sum": data["x"].sum()}

    return run


def hasty(data):
    return lambda: {"sum": 0.9 * data["x"].sum()}


def tuned(data):
    print("what a library prints must not reach the harness")
    return lambda tolerance: {"sum": (1 + tolerance) * data["x"].sum()}


def strict(data):
    def run(tolerance):
        if tolerance > 1e-3:
            raise ValueError("no such tolerance")
        return {"sum": (1 + tolerance) * data["x"].sum()}

    return run


def broken(data):
    def run():
        raise ValueError("cannot sum")

    return run


def ending(data):
    return lambda: os._exit(3)


def searching(data):
    def run(seed):
        return {"sum": data["x"].sum() + (seed == 1), "cpu_seconds": 1.0 + (seed or 0), "wall_seconds": 2.0}

    return run
