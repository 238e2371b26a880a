"""What was published: one list of specs a family. Data only: importing this loads no network code."""
