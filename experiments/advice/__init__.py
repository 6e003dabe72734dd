"""From a trace and what it is to be served like, to the settings that do it with least memory."""
