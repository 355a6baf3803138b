"""The user interface: the command line and the Streamlit pages."""
