"""Input data: decode image files, and read images from folders, Parquet files, tars and the Hub."""
