"""Weight formats that can be converted: names of tensors, geometry, preprocessing."""
