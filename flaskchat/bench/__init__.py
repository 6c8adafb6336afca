"""`flask chat bench`: what live replies cost on this machine, and how many of them a worker holds.

    ramp        the steps, and what they say
    project     a Flask project with the host's settings and a folder of its own, never the user's data
    serving     how gunicorn runs it
    model       the stand-in for a model's server         } processes of their own,
    load        the browsers                              } one selector loop each (`loop`)
    processes   starts and ends them
    machine     CPU and memory of a process, and what the machine is
    show        the table and the plot
"""
