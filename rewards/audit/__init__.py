"""What an audit of a reward tries: faults that anybody would see, and attacks on pixels."""
