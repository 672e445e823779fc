"""What the deployment chapter does to real servers; each experiment returns what JSON can hold.

`processes` starts servers, `planted` gives them a fault, `clients` asks them by a timetable. The rest is one
file for each question: who shares a batch (`grouping`), what overload does (`overload`), who notices a hang
(`hanging`), what a cache saves (`remembering`) and what similarity is worth (`resembling`), how a bad version
is caught (`trying`), whether drift is seen (`drifting`), what the death of a server costs (`replicas`), and
how servers compare that differ in one setting (`variants`). A page stores each result once, as a record.
"""
