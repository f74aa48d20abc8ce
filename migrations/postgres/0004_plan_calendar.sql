-- When the days, weeks and months of a plan's limits begin: JSON {"zone","month_day","week_day"}. NULL: UTC, the first, Monday.
ALTER TABLE plans ADD COLUMN calendar TEXT;
