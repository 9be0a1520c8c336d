INSTRUCTIONS: str
LAYOUT: int

def row(
    x: int, out: int, ring: int, z: int, table: int, size: int, depth: int, i: int, rows: int, width: int, /
) -> None: ...
