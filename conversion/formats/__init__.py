"""Weight formats that can be converted: tensor names, geometry and preprocessing."""
