"""Everything that measures: data sets, features, metrics, timing, records and tables."""
