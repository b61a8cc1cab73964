"""The same Ibis expressions on Spark, for a log that outgrows one machine.

In reading order: `session.py` (tables, expressions, and the way out), `start.py` (Spark and Java, and how their faults
are told), `dialect.py` (a recipe's SQL, which is DuckDB's, in Spark's words), `files.py` (Parquet files, rows
numbered).
"""
