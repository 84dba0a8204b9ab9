-- The stream tables, with their views, for which a text search configuration is the default one that is
-- the object ($1 its catalog, $2 the object), or that uses this dictionary.
SELECT s.pgs_id, s.view_relid
FROM pgstream.pgs_stream_tables AS s
JOIN pg_catalog.pg_class AS v ON v.oid = s.view_relid
JOIN pg_catalog.pg_ts_config AS c
  ON s.settings[array_position(s.settings, 'default_text_search_config') + 1]
     IN (c.cfgname, c.cfgnamespace::regnamespace || '.' || quote_ident(c.cfgname))
WHERE $1 = 'pg_catalog.pg_ts_config'::regclass AND c.oid = $2
   OR $1 = 'pg_catalog.pg_ts_dict'::regclass
  AND EXISTS (SELECT FROM pg_catalog.pg_ts_config_map WHERE mapcfg = c.oid AND mapdict = $2)
ORDER BY s.pgs_id
