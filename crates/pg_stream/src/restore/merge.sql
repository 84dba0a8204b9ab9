-- What a dump says of a stream table that exists already, if it was never refreshed here.
UPDATE pgstream.pgs_stream_tables
SET status = $3, error_message = $4, is_populated = $5, data_timestamp = $6, last_refresh_at = $7,
    created_at = $8
WHERE (pgs_schema, pgs_name) = ($1, $2) AND last_refresh_at IS NULL AND status = 'INITIALIZING'
