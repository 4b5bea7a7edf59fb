"""DICOM series in, DICOM SEG out: which series a folder holds, codes of the organs, segmentations that refer to the source."""
