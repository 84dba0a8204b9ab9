-- Gives the setting of stream tables the name that the text search configuration has which their hidden views
-- hold on to. What a query names itself, the rule of the view holds.
UPDATE pgstream.pgs_stream_tables AS s
SET settings[array_position(s.settings, 'default_text_search_config') + 1] = held.name
FROM (SELECT d.objid AS view, quote_ident(n.nspname) || '.' || quote_ident(c.cfgname) AS name
      FROM pg_catalog.pg_depend AS d
      JOIN pg_catalog.pg_ts_config AS c ON c.oid = d.refobjid
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.cfgnamespace
      WHERE d.classid = 'pg_catalog.pg_class'::regclass
        AND d.refclassid = 'pg_catalog.pg_ts_config'::regclass) AS held
WHERE held.view = s.view_relid
  AND s.settings[array_position(s.settings, 'default_text_search_config') + 1] <> held.name
