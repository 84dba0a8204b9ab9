-- Notes of whom is told that they leave many changes of a source unconsumed; gives those of whom it
-- was told before. Nothing, if they are the same.
UPDATE pgstream.pgs_change_tracking SET told_growing = $2
WHERE source_relid = (SELECT source_relid FROM pgstream.pgs_change_tracking
                      WHERE source_relid = $1 AND told_growing <> $2
                      FOR NO KEY UPDATE SKIP LOCKED)
RETURNING old.told_growing
