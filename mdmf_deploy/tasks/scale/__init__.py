"""Detection on Ray Data: the same rows as a local run, from many processes or machines, into a folder of parts.

    listing --> read_block (tasks) --> Scorer (actors) --> write_part (tasks) --> the driver
    blocks of   reads, decodes and     scores on one       one Parquet part       adds up tallies
    inputs      crops to pixels        thread or one GPU   of many blocks

locations.py: URLs of file systems.  listing.py: arguments to a table of inputs.  cluster.py: Ray, started or joined.
run.py: what is missing, and the stages in order.  stages.py: what the workers run.  tables.py: what travels between.
shipment.py: a bundle on its way to other machines.  tally.py: what each part tells the driver.

Ray decides how many tasks run, and holds readers back when scorers are behind. The output decides what is left to do
(mdmf_deploy.detection.outputs.parts), so nothing of a run is kept elsewhere, and any run may be killed at any time.
"""
