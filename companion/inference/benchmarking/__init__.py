"""How fast folders answer: warmed up, in turns, with intervals, and under requests by timetable."""
