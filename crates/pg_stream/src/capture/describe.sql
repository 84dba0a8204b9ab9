UPDATE pgstream.pgs_dependencies AS d
SET cdc_mode = t.cdc_mode,
    slot_name = CASE WHEN t.cdc_mode = 'WAL' THEN t.slot_name END,
    decoder_confirmed_lsn = CASE WHEN t.cdc_mode = 'WAL' THEN d.decoder_confirmed_lsn END,
    transition_started_at = t.transition_started_at
FROM pgstream.pgs_change_tracking AS t
WHERE d.source_relid = $1 AND t.source_relid = $1
