"""What a run has shown: statistics, the sentence that they allow, figures, and one page."""
