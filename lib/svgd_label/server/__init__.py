"""The MONAI Label side: thin classes over the package's own functions. Only this room imports monailabel."""
