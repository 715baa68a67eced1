"""Small processes for the supervisor's tests: a supervisor without rooms, and children of each kind."""
