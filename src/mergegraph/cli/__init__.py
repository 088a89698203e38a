"""The command line: what is asked (`app`), and how the answers look (everything else)."""
