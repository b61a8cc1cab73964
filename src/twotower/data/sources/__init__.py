"""Where tables come from; each source hands over `RawData`.

In reading order: `files.py` (your own tables), `text_files.py` (those in CSV) and `recorded.py` (what a server recorded
meanwhile), `movielens.py` and `movielens_download.py` (five public sets), `simulated.py` (a world whose best ranking is
known), `simulated_films.py` and `simulated_log.py` (its films, and what people watched there).
"""
