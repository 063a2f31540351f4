"""Images with captions, from wherever they are, into a data set that training reads; see `prepare.prepare`.

    input ──sources──▶ units ──examine──▶ work/units/*.parquet ──choose──▶ work/chosen/*.parquet ──shards──▶ ArrayRecord
                              decode, filter,                    leaks, duplicates
                              crop, hash (per record)            (across records)

Each arrow is one Apache Beam pipeline whose tasks each write one file, whole or not at all, named after
everything that decides its contents. So what is there is finished and right: a killed run goes on, a run
with nothing new does nothing, and added input costs what was added.
"""
