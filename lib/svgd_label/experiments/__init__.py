"""Work without an annotator: committees trained on labelled data sets, and the replay of active learning."""
