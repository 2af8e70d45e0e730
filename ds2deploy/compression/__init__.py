"""Make a trained network smaller: fewer units and maps, input sides of low rank."""
