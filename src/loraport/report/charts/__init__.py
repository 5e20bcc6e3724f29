"""Small drawings, described by their data: lines, a map, bars, and where one value stands among others.

A file each says where things lie, in numbers, and what is said to those who cannot see them. `data/drawings.html.j2`
writes them as SVG without colours; the style sheet colours them, by light and by dark. A page of a large model holds
thousands of them, one set a layer, so they are small: matplotlib takes a tenth of a second and 20 kB for each.
"""

from loraport.report.charts.axes import Colour, NumberUnit, number
from loraport.report.charts.bars import Bar, Bars
from loraport.report.charts.boxes import Box, Boxes, spread_of
from loraport.report.charts.lines import Lines, Series
from loraport.report.charts.maps import Map

Drawing = Lines | Map | Bars | Boxes

__all__ = [
    "Bar",
    "Bars",
    "Box",
    "Boxes",
    "Colour",
    "Drawing",
    "Lines",
    "Map",
    "NumberUnit",
    "Series",
    "number",
    "spread_of",
]
