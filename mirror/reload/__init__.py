"""Another configuration while the service runs: no request is dropped, and a bad one is refused.

reloader    when the file is read again, and what came of it
changeover  has every part go on by the new configuration, in one step
figures     what is told of it to metrics
"""
