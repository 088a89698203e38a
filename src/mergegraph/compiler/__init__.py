"""From a plan and the headers of its checkpoints to a graph.

`parameters` says what a setting is worth for one tensor, and checks a plan against its method.
Pure: values in, values out.
"""
