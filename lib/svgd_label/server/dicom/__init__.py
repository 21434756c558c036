"""Studies on a DICOMweb server: mirrored into a folder, and labels sent back as DICOM SEG."""
