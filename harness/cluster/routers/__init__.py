"""The routers that come with kvarena, a module each."""
