//! Texts that are written for other programs: cells of CSV files, usage records in files, values outside of the config file.

pub mod csv_cell;
pub mod plain_value;
pub mod record_line;
