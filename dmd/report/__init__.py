"""What people look at: scores, tables, charts, grids of images, model cards."""
